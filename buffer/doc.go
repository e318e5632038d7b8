// Package buffer is a crash-safe log of opaque records on disk, with named queues in it. It is what lets a gateway say "I have it": a
// record is durable when the fsync of its frame has returned, and it stays until the reader of its queue acknowledges it, or a bound or
// the owner gives it up, each of which is told and counted. The package knows nothing of MQTT, messages or configuration.
//
// # How it works
//
// All queues of a Log share one sequence of segment files, because one fsync then serves them all. Append copies records into the
// gathering frame and returns at once; a single goroutine writes one frame after the other, each with one write and one fsync, while
// the next one gathers. Notify and Wait tell when a position is on disk. Records of one Append stand in one frame: all of them are there
// after a crash, or none.
//
// Each queue has its own sequences, its own reader (Next; a Tail can follow the end beside it) and its own set of acknowledged sequences. That set is written with the next
// frame, so acknowledging costs no fsync; what a crash loses of it is only sent again. A segment without needed records is used again
// under a new name. If one queue stands still while others flow, the few records that pin a segment are moved to the head of the log.
//
// The bytes on disk are drawn in format.go and codec.go; crypt.go and compress.go are what may be done to the records in them. Start reading at log.go (Open), append.go, commit.go (the one writer) and
// read.go; recover.go and load.go are the start after a crash, stall.go is a disk that cannot be read.
//
// # Limits
//
//   - It trusts fsync: a device that acknowledges a flush and loses the data loses records, which is then seen and counted as damage.
//   - With Options.Sync > 0, up to that much time of records is lost in a power cut (not when only the process dies).
//   - A record is delivered at least once: what was acknowledged up to a second before a crash is read again.
//   - A damaged frame costs all its records, never others, and never yields a wrong byte. How many records were lost is known from the
//     sequences, except at the very end of a log that was not closed. There the epoch changes, so that epoch, queue and sequence
//     still name one record. If the bad frame is the one with the latest acknowledgements, older ones count: records are read again,
//     and records whose segment was given up since are counted as damaged although they were acknowledged.
//   - The files take the sum of the bounds and one segment more, where the bounds are at least thirty-two segments together; where they are
//     smaller, up to three. A bound counts what records take of the files, and not less than their data and a little for each. A Queue
//     without Bound grows until the disk is full.
//   - On a full disk the bounds act as if they were full; what waits at that moment may fail with ErrFull or ErrFailed.
//   - On a full disk DropOldest evicts a segment's worth at a time, the oldest that can be emptied and used again; what stands in the newest
//     segment or beside records that may not be evicted stays, and appends are refused then.
//   - Bytes that cannot be read are not bytes that are wrong: Next and Scan return the error of the disk and give up nothing, Open waits
//     about two seconds and then fails, with the file left as it is (OpenReadOnly still shows the rest). A page that could not be
//     read for ten minutes while the disk was writable is given up as damaged, its file left alone until the next start.
//   - The size charged to a bound is exact for a whole extent and an estimate for one that is partly acknowledged.
//   - Expiry and age are kept with the records; nothing is dropped by them here.
//   - Records are encrypted, the index beside them is not: who has the disk sees the names of queues, how many records there are, their
//     sequences, their length together, and times. Who can write to the disk can take records away, which is counted as damage, and put plain
//     ones in their place, but change or move none that is sealed.
//   - Without its key a record cannot be read, nor moved from a segment that it pins, but given up.
//   - One process per folder. Local file systems only: the lock is flock.
package buffer
