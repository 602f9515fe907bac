"""The mesh of devices, where arrays live on it, and what several processes agree on."""
