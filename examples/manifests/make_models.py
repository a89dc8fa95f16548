"""Make the models that the files beside this one serve: two classifiers, and a copy of the small story model.

python make_models.py /tmp/nanopod-models
"""

import shutil
import sys
from importlib.resources import as_file, files
from pathlib import Path

import joblib
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

directory = Path(sys.argv[1])
flowers = load_iris()
for name, model in (("iris", LogisticRegression(max_iter=500)), ("iris-2", DecisionTreeClassifier(random_state=0))):
    (directory / name).mkdir(parents=True, exist_ok=True)
    joblib.dump(model.fit(flowers.data, flowers.target), directory / name / "model.joblib")
with as_file(files("nanopod.node.engines") / "tiny") as story:
    shutil.copytree(story, directory / "story", dirs_exist_ok=True)
print("models:", ", ".join(sorted(path.name for path in directory.iterdir())))
