package session

import "tidegate/message"

// Store makes the queues of sessions. Memory is the one there is: what it holds ends with the process.
type Store interface {
	// Queue returns the queue of the session of that client identifier.
	Queue(client string) Queue
	// Remove forgets the queue when the session ends.
	Remove(client string)
}

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

// Entry is one message on its way to one subscriber.
type Entry struct {
	// Msg is shared between all subscribers and never changed.
	Msg *message.Message
	// IDs are the subscription identifiers to be sent along; shared, never changed.
	IDs []uint32
	// QoS is the lower of the message's and the subscription's.
	QoS message.QoS
	// Retain is the flag to be sent: set on what a SUBSCRIBE asked for, and as published where the subscription says so.
	Retain bool
	// Stored says that the message is held by the retained store anyway, so that it costs no memory here.
	Stored bool

	// polite asks a session to refuse the entry rather than drop another for it.
	polite bool
	// share is the shared subscription it came through, which takes it back when the session ends before delivery.
	share *share
}

// entryOverhead is what an entry and the headers of its message take beside the payload, about.
const entryOverhead = 256

// propertyOverhead is what a user property takes beside its text, about.
const propertyOverhead = 64

// Size returns the bytes of memory that e stands for.
func (e *Entry) Size() int64 {
	if e.Stored {
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

// Memory is the Store that keeps queues in memory.
type Memory struct{}

// Queue returns an empty queue.
func (Memory) Queue(string) Queue { return &memoryQueue{} }

// Remove does nothing: the queue goes with its session.
func (Memory) Remove(string) {}

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
