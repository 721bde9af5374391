"""How conversations become text and token ids; the exporter copies this folder into every served model."""
