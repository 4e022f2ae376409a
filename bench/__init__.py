"""The benchmark suites, their JSON records, and the report made from them: the source of every published number."""
