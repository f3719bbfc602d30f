"""How the files of the data set become documents: ``CLASS/PATIENT-NUMBER.png``, a folder for each class."""

from pathlib import Path

from medmllm_plugins import (
    DataFaults,
    DatasetSpec,
    Document,
    FileLayout,
    LabelledFile,
    checked_documents,
    image_files,
)


class ClassFolders(FileLayout):
    """Images in a folder for each class, with the patient in the file name."""

    def documents(self, spec: DatasetSpec, folder: Path, faults: DataFaults) -> list[Document]:
        """List and check all images; images of one patient are in one group, so that they share a fold.

        All files are decoded, near-duplicates join their groups, and folds are made by group. Pass ``folds=`` to
        ``checked_documents`` if the data set has a published split.
        """
        files = []
        for label in spec.labels:
            for path in image_files(folder / label, faults):
                patient, dash, _ = path.stem.partition("-")
                if not dash:
                    faults.file(f"{path}: expected a name such as patient7-01.png, got one without a dash")
                    continue
                files.append(LabelledFile(id=f"{label}/{path.stem}", path=path, label=label, source=patient))
        return checked_documents(files, folder, faults)
