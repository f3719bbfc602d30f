"""Write 24 small CT series for a tutorial: noise of water, half of them with a dense ball, in DICOM."""

import csv
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

generator = np.random.default_rng(0)
depths, rows, columns = np.mgrid[:16, :64, :64]
labels = []
for number in range(24):
    dense = number % 2 == 1
    centre = generator.uniform((5, 24, 24), (11, 40, 40))
    distance = np.sqrt((2 * (depths - centre[0])) ** 2 + (rows - centre[1]) ** 2 + (columns - centre[2]) ** 2)
    voxels = generator.normal(20, 10, size=depths.shape) + (180 if dense else 0) * (distance < 9)
    folder = Path("series") / f"{number:03d}"
    folder.mkdir(parents=True, exist_ok=True)
    study, series = generate_uid(entropy_srcs=[f"study {number}"]), generate_uid(entropy_srcs=[f"series {number}"])
    for index, plane in enumerate(voxels):
        header = FileMetaDataset()
        header.MediaStorageSOPClassUID = CTImageStorage
        header.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[f"image {number} {index}"])
        header.TransferSyntaxUID = ExplicitVRLittleEndian
        image = Dataset()
        image.file_meta = header
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, header.MediaStorageSOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID, image.PatientID = study, series, f"P{number:03d}"
        image.Modality, image.InstanceNumber = "CT", index + 1
        image.ImageOrientationPatient, image.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2 * index]
        image.PixelSpacing, image.SliceThickness = [1, 1], 2
        image.Rows, image.Columns, image.SamplesPerPixel = 64, 64, 1
        image.PhotometricInterpretation = "MONOCHROME2"
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.PixelRepresentation = 15, 1
        image.RescaleSlope, image.RescaleIntercept = 1, 0
        image.PixelData = plane.round().astype("<i2").tobytes()
        image.save_as(folder / f"{index:02d}.dcm", enforce_file_format=True)
    labels.append(
        {"series": f"{number:03d}", "finding": "dense ball" if dense else "no finding", "patient": f"P{number:03d}"}
    )
with Path("labels.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, ["series", "finding", "patient"])
    writer.writeheader()
    writer.writerows(labels)
