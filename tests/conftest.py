"""What all tests share: nothing of the user's own settings may reach them."""

from __future__ import annotations

import os

for _name in [name for name in os.environ if name.startswith("GROUNDSWELL_")]:
    del os.environ[_name]
