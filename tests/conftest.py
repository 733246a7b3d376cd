"""For every test: no hub is asked, unless a test starts one and says so to a process of its own."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is first imported
