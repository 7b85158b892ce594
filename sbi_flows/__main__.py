"""``python -m sbi_flows``: the command line."""

from sbi_flows.cli import main

if __name__ == "__main__":
    main()
