"""The page of `zimage-vl app` as a Space; here too: python examples/space/app.py.

Options of `zimage-vl app` go into the Space's variable ZIMAGE_VL_APP, such as
`--model Tongyi-MAI/Z-Image-Turbo --offload model`. Without it the toy paints, which needs no GPU.
"""

import os
import shlex

from zimage_vl.cli.app import app


app(["app", "--host", "0.0.0.0", "--port", "7860", *shlex.split(os.environ.get("ZIMAGE_VL_APP", ""))])
