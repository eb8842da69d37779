"""Run ``python -m speechbrain_dslstm.cli`` as the command ``dslstm``."""

from speechbrain_dslstm.cli.app import main

if __name__ == "__main__":
    main()
