#!/usr/bin/env python
"""Submit a re-scoring: python jobs/rescore.py --config job.json --scheduler tcp://scheduler:8786

`job.json` holds any blocks of the settings (stored, defects, output, dataflow); every flag of `pyimgano-rescore` may
follow and wins over it.
"""

import sys

from pyimgano_dask.cli.rescore import main

if __name__ == "__main__":
    sys.exit(main(prog="jobs/rescore.py", config_flags=("--config", "--infer-config")))
