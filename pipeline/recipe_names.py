"""What a recipe may be called.  Standard library only: whoever reads the record alone knows recipes by their names."""

from __future__ import annotations

import re

# A recipe's name is a folder's, a job's and part of an address.
NAME = re.compile(r"[^\W_](?:[\w .+,@=~()-]*[\w)])?")
LONGEST_NAME = 80  # bytes; names of folders may have 255, and a part is added here and there
