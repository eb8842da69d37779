"""Helpers that know nothing of speech.

``distributed`` reduces values over the ranks of a DDP job, ``files`` writes
files atomically, ``folders`` walks folders without hidden files, ``compiled``
compiles loops with numba, ``loops`` loads such loops on first use and says why
they cannot run, and ``names`` says which names fit on a line.
"""
