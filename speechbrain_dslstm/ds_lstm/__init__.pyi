from .equations import (
    ds_lstm_naive as ds_lstm_naive,
    ds_lstm_step as ds_lstm_step,
)
from .layer import DSLSTM as DSLSTM
