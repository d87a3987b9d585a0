"""Tables: from somebody's file of rows and columns to a Problem, a saved model, and predictions."""

from flooding.tabular.model import (
    TableModel,
    check_folder,
    load_model,
    predict,
    read_origin,
    save_model,
)
from flooding.tabular.preprocessing import Preprocessing
from flooding.tabular.problem import TableProblem, Target, table_problem
from flooding.tabular.reading import read_table

__all__ = [
    "Preprocessing",
    "TableModel",
    "TableProblem",
    "Target",
    "check_folder",
    "load_model",
    "predict",
    "read_origin",
    "read_table",
    "save_model",
    "table_problem",
]
