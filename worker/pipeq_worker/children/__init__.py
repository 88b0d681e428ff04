"""CHILDREN: the processes beside the host: what is said between them, their own main loop, and who watches them."""
