"""Drift of the backends and the oracle."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

KIND_STYLES = {
    "losses": ("#56B4E9", "-"),
    "gradients": ("#D55E00", "-"),
    "parameters": ("#0072B2", "-"),
    "targets": ("#009E73", "--"),
    "moments": ("#E69F00", "--"),
    "alpha": ("#CC79A7", ":"),
}
"""Colour and line of what is compared between backends: Okabe and Ito's colours."""


def drift(dtype: str, pairs: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Draw the largest relative difference after each update, by kind; a panel per pair."""
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(3.2 * columns + 0.4, 2.6 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    named = {}
    for axes, (pair, kinds) in zip(panels.flat, pairs.items(), strict=False):
        for kind, values in kinds.items():
            colour, line = KIND_STYLES.get(kind, ("0.5", "-."))
            (named[kind],) = axes.plot(range(1, len(values) + 1), values, color=colour, linestyle=line, linewidth=1)
        axes.set_yscale("log")
        axes.set_title(pair, fontsize="medium")
        axes.grid(alpha=0.3)
    for axes in panels[-1]:
        axes.set_xlabel("update")
    figure.supylabel(f"largest relative difference, {dtype}", fontsize="medium")
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), fontsize="small", frameon=False)
    return figure
