"""The Dual-Sequence LSTM: read ``equations.py`` first."""

from speechbrain_dslstm.ds_lstm.equations import ds_lstm_naive, ds_lstm_step
from speechbrain_dslstm.ds_lstm.layer import DSLSTM

__all__ = ["DSLSTM", "ds_lstm_naive", "ds_lstm_step"]
