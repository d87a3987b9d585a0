"""scikit-learn: an estimator that chooses its level within one training.

It is compared with MLPClassifier. The picture shows the validation accuracy after every epoch,
and the epoch that is kept.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from flooding.integrations.sklearn import FloodingClassifier

# 1. Data: 600 rows to train on, the rest to test.
X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, train_size=600, random_state=0)

# 2. Before and after.
before = make_pipeline(StandardScaler(), MLPClassifier(early_stopping=True, random_state=0))
after = FloodingClassifier(random_state=0)
for model in (before, after):
    model.fit(X_train, y_train)
    test_loss = log_loss(y_test, model.predict_proba(X_test))
    print(f"test loss {test_loss:.2f}, accuracy {model.score(X_test, y_test):.1%}")

# 3. What the training chose.
print(f"level {after.level_:.2f}; epoch {after.best_epoch_} of {after.n_epochs_} is kept")


# The picture.
import matplotlib.pyplot as plt

figure, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
ax.plot(range(1, after.n_epochs_ + 1), after.validation_scores_, color="tab:blue")
ax.axvline(after.best_epoch_, color="gray", linestyle=":", label="kept")
ax.set(xlabel="epoch", ylabel="validation accuracy")
ax.legend()
figure.savefig("sklearn_classifier.png", dpi=100)
