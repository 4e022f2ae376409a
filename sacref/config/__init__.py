"""Settings of the agent and of a run: their fields, checks and sources."""

from sacref.config import presets as presets
from sacref.config.fields import PARTS as PARTS
from sacref.config.fields import as_json as as_json
from sacref.config.fields import from_json as from_json
from sacref.config.sac_config import CALLABLES as CALLABLES
from sacref.config.sac_config import HARMLESS as HARMLESS
from sacref.config.sac_config import CallableError as CallableError
from sacref.config.sac_config import ConfigError as ConfigError
from sacref.config.sac_config import Execution as Execution
from sacref.config.sac_config import ExperimentConfig as ExperimentConfig
from sacref.config.sac_config import SACConfig as SACConfig
from sacref.config.sac_config import Schedule as Schedule
from sacref.config.sac_config import paper_config as paper_config
