"""Bring your own model: a plain PyTorch network and a DataLoader.

    netcarve inspect examples/tensors_task.py:task
    netcarve sweep examples/tensors_task.py:task --trials 100

A task file is ordinary Python with a function that returns a netcarve.Task: a trained model, one batch
of example inputs, and validation data to score subnetworks on. Nothing in the model knows of netcarve.
"""

import netcarve
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(nn.Module):
    """30 measurements of a tumour -> benign or malignant."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(30, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
        )
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def data() -> tuple[TensorDataset, TensorDataset]:
    """Training and validation samples; the split is fixed, so that runs can be compared and resumed."""
    x, y = load_breast_cancer(return_X_y=True)
    x_train, x_valid, y_train, y_valid = train_test_split(x, y, test_size=0.25, random_state=0, stratify=y)
    scaler = StandardScaler().fit(x_train)
    return (
        TensorDataset(torch.tensor(scaler.transform(x_train)).float(), torch.tensor(y_train)),
        TensorDataset(torch.tensor(scaler.transform(x_valid)).float(), torch.tensor(y_valid)),
    )


def train(model: nn.Module, loader: DataLoader, epochs: int = 20) -> None:
    """The usual loop. With a model of yours that takes hours, load its weights here instead:
    ``model.load_state_dict(torch.load("weights.pt", weights_only=True))``."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    model.train()
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()


def task() -> netcarve.Task:
    torch.manual_seed(
        0
    )  # the same weights every time: a run can only be resumed with the model it began with
    train_set, valid_set = data()
    model = Classifier()
    # drop_last: batch normalisation cannot train on a last batch of one sample.
    train(model, DataLoader(train_set, batch_size=32, shuffle=True, drop_last=True))
    return netcarve.Task(
        model,
        example=valid_set[:1][0],  # one batch of inputs, here of a single sample
        validation=DataLoader(valid_set, batch_size=100),  # batches of (inputs, targets)
        train=DataLoader(train_set, batch_size=100),  # its inputs re-estimate BatchNorm after pruning
        metric="accuracy",  # or "loss", or your own function (outputs, targets) -> float
        name="tumours",
    )
