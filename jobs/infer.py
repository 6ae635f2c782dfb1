#!/usr/bin/env python
"""Submit an inspection: python jobs/infer.py --config job.json --scheduler tcp://scheduler:8786

`job.json` holds any blocks of the settings (model, training, inputs, defects, output, dataflow); every flag of
`pyimgano-infer` may follow and wins over it.
"""

import sys

from pyimgano_dask.cli.infer import main

if __name__ == "__main__":
    sys.exit(main(prog="jobs/infer.py", config_flags=("--config", "--infer-config")))
