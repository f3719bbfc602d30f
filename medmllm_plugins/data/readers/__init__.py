"""Readers of images, volumes and DICOM files: bytes on disk in, checked arrays out."""
