"""What people of the hospital look at: kept images, quarantined frames, and the scan each came from."""
