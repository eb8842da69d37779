"""The command ``dslstm``: emotions of files, folders and streams.

Each command has a module of its name. ``app`` holds the group and the exit
status, ``options`` the options of several commands, ``live`` what ``stream`` and
``mic`` share, ``raw_audio`` standard input, ``rows`` the output as text, CSV or
JSON, and ``row_file`` a file of such rows that can be continued.
"""
