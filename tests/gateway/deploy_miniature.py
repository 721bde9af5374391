"""Deploy the miniature model as the deploy stage does, in the serving toolchain: ``python deploy_miniature.py FOLDER``.

Leaves FOLDER/deploy/server.json, the record of what runs, and FOLDER/keys with two API keys.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.miniature import make_inputs, port_settings, run_stage

KEYS = {"alice": "alice-0123456789abcdef", "bob": "bob-0123456789abcdef"}


def main(folder: Path) -> None:
    status, told = run_stage("export", folder / "export", make_inputs(folder / "inputs"), {})
    assert status == 0, told
    keys = folder / "keys"
    keys.write_text("# of the tests\n" + "".join(f"{name}: {key}\n" for name, key in KEYS.items()))
    keys.chmod(0o600)
    settings = {**port_settings(), "keys_file": str(keys)}
    record = folder / "deploy" / "server.json"
    inputs = {"export": folder / "export" / "output"}
    status, told = run_stage("deploy", folder / "work", inputs, settings, {"server_record": str(record)})
    assert status == 0, told


if __name__ == "__main__":
    main(Path(sys.argv[1]))
