from .model_folder import (
    PassThrough as PassThrough,
    load_labels as load_labels,
    load_weights as load_weights,
    make_label_encoder as make_label_encoder,
    save_pretrained as save_pretrained,
)
from .safe_format import (
    read_description as read_description,
    write_safe as write_safe,
)
from .sources import (
    find_folder as find_folder,
)
