package session

import "tidegate/message"

// Queue holds what a session has not sent yet, in order. The session calls it under its own lock, from one goroutine at
// a time; no method may block.
type Queue interface {
	// Append adds e behind everything else.
	Append(e Entry)
	// Peek returns the oldest entry without removing it; nil when there is none. It is valid until the next call.
	Peek() *Entry
	// Pop removes and returns the oldest entry.
	Pop() Entry
	// Len and Bytes measure the queue; Bytes is the sum of the entries' Size.
	Len() int
	Bytes() int64
}

// entryOverhead is what an entry and the headers of its message take beside the payload, about.
const entryOverhead = 256

// propertyOverhead is what a user property takes beside its text, about.
const propertyOverhead = 64

// Size returns the bytes that e counts for.
func (e *Entry) Size() int64 {
	switch {
	case e.size > 0:
		return e.size
	case e.Stored:
		return entryOverhead / 4
	}
	return sizeOf(e.Msg)
}

// sizeOf returns the bytes of memory that m takes, about.
func sizeOf(m *message.Message) int64 {
	n := entryOverhead + len(m.Topic) + len(m.Payload) + len(m.ContentType) + len(m.ResponseTopic) + len(m.CorrelationData)
	for i := range m.Properties {
		n += propertyOverhead + len(m.Properties[i].Key) + len(m.Properties[i].Value)
	}
	return int64(n)
}

// memoryQueue is the Queue of a session that ends with its connection, or with the process.
type memoryQueue struct {
	entries ring[Entry]
	bytes   int64
}

func (q *memoryQueue) Append(e Entry) {
	q.entries.push(e)
	q.bytes += e.Size()
}

func (q *memoryQueue) Peek() *Entry {
	if q.entries.len() == 0 {
		return nil
	}
	return q.entries.at(0)
}

func (q *memoryQueue) Pop() Entry {
	e := q.entries.pop()
	q.bytes -= e.Size()
	return e
}

func (q *memoryQueue) Len() int     { return q.entries.len() }
func (q *memoryQueue) Bytes() int64 { return q.bytes }
