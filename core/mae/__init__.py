"""The masked autoencoder and its training: Batch -> Checkpoint. Knows no DICOM and no rounds."""
