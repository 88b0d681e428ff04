"""MEDIA: bytes of images, audio, video and tables -> what models take, counted before it is made."""
