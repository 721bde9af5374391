"""Bring a hub model into the local cache: ``python -m pipeline.stages.fetch_base ORG/NAME REVISION``.

Only what a base model needs: configuration, tokenizer and safetensors, its card and licence; never a pickle, never
code.  The token (HF_TOKEN) is read from the environment by huggingface_hub and goes nowhere else.
"""

from __future__ import annotations

import sys

WANTED = ("*.json", "*.safetensors", "*.jinja", "README.md", "LICENSE*", "USE_POLICY*")
LEFT = ("original/*", "*.bin", "*.pth", "*.py")


def main() -> int:
    """Download, or say in one line why not; status 2 then."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, revision = sys.argv[1:3]
    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=list(WANTED), ignore_patterns=list(LEFT)
        )
    except GatedRepoError:
        fault = "its licence has to be accepted on its page, and HF_TOKEN to hold a token of that account"
    except RevisionNotFoundError:
        fault = f"it has no revision {revision}"
    except RepositoryNotFoundError:
        fault = "there is no such model, or HF_TOKEN may not read it"
    except LocalEntryNotFoundError:
        fault = "the hub cannot be reached from this machine"
    except (HfHubHTTPError, OSError) as error:
        fault = (str(error).splitlines() or [type(error).__name__])[0]
    else:
        print(folder)
        return 0
    print(f"{name}: {fault}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
