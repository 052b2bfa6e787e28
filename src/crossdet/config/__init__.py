"""The configuration: one YAML file, checked strictly at the edge, all mistakes reported at once.

`schema` holds the sections with their defaults (the paper's recipe) and the checks between values, `fields`
the types of single values, `mistakes` turns pydantic's errors into sentences, `files` reads and writes YAML.
Nothing below `crossdet.runs` knows these classes. No torch in here.
"""

from crossdet.config.files import CONFIG_FILE, Override, as_config, dump_config, load_config
from crossdet.config.schema import Config, DatasetConfig, LabelsConfig, SplitConfig, UnionTestConfig

__all__ = [
    "CONFIG_FILE", "Config", "DatasetConfig", "LabelsConfig", "Override", "SplitConfig", "UnionTestConfig",
    "as_config", "dump_config", "load_config",
]  # fmt: skip
