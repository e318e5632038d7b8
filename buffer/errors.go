package buffer

import "errors"

// The errors a caller acts on. Everything the log returns wraps one of them, or is an error of the file system met while opening.
var (
	// ErrFull says that a bound with the policy Refuse has no room, or that the disk has none. Nothing was changed.
	ErrFull = errors.New("buffer is full")
	// ErrBusy says that too much waits for the disk at this moment. Nothing was changed; it passes with the next commit.
	ErrBusy = errors.New("buffer is busy")
	// ErrTooLarge says that a record can never fit: it is larger than its bound or than MaxRecordBytes.
	ErrTooLarge = errors.New("record is too large")
	// ErrClosed says that Close was called.
	ErrClosed = errors.New("buffer is closed")
	// ErrFailed says that the disk failed and could not be worked around. The log tries to heal by itself.
	ErrFailed = errors.New("disk failed")
	// ErrLocked says that another process has the folder open.
	ErrLocked = errors.New("folder is in use by another process")
	// ErrReadOnly says that the log was opened by OpenReadOnly.
	ErrReadOnly = errors.New("buffer is open for reading only")
	// ErrDropped says that the queue was removed from the log by Drop.
	ErrDropped = errors.New("queue was dropped")
)

var (
	errBadMagic   = errors.New("no frame begins here")
	errBadHeader  = errors.New("header checksum does not match")
	errBadBody    = errors.New("body checksum does not match")
	errBadContent = errors.New("content cannot be decoded")
	errPastEnd    = errors.New("frame reaches past the end")
)
