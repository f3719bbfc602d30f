"""A scikit-learn classifier as a probe."""

from sklearn.neighbors import KNeighborsClassifier

from medmllm_plugins import SklearnProbe

nearest = SklearnProbe(KNeighborsClassifier(), grid={"n_neighbors": [15, 5, 1]})
