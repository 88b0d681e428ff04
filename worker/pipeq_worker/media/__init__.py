"""MEDIA: decodes images, audio, video and tables into what models take, and counts the memory before it is used."""
