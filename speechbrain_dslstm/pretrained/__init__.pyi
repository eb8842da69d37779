from .card import (
    write_card as write_card,
)
from .initialisation import (
    initialise as initialise,
)
from .model_folder import (
    PassThrough as PassThrough,
    load_labels as load_labels,
    load_weights as load_weights,
    make_label_encoder as make_label_encoder,
    save_pretrained as save_pretrained,
)
from .sources import (
    find_folder as find_folder,
)
