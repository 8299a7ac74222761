"""Files that nobody should trust, everything of xpcap that reads files, and what it must do then.

Either it opens them rightly, or it raises an `XpcapError` of one line: without a warning, without
anything printed, within a second of processor time and 500 MB, and without asking for more memory
than there is.

    changes, hdf5, archives, pictures   strategies of files, each made of the bytes of a valid one
    loaders                             what reads files: a valid file, its strategy, and the call
    child                               a process in which files are loaded and watched
    faults                              loaders that do what no loader may
"""
