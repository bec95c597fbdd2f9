"""`python -m lepton_cli` is the same as `lepton`."""

from lepton_cli.cli.main import run

if __name__ == "__main__":
    run()
