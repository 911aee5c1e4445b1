"""The napari plugin: layers in, layers out; it can do nothing that the API cannot."""
