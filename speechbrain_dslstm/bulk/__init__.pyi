from .answers import Summary as Summary
from .job import classify_dataset as classify_dataset
