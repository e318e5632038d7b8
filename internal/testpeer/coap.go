package testpeer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// CoAPLoad is a number of CoAP devices that each send one confirmable POST after the other, the next when the last was
// answered. The messages are put together here by hand, with no library, so that the same load can be given to a plain echo of
// datagrams, which is the floor to measure against.
type CoAPLoad struct {
	Clients int
	Topic   string // of at most 12 bytes a level
	Payload int    // bytes
}

// CoAPResult is what came of a load.
type CoAPResult struct {
	Elapsed  time.Duration
	Answered int
	Again    int // requests that were sent again
	// Median and P99 are times from request to answer.
	Median, P99 time.Duration
}

// resendAfter is how long a device waits for its answer before it sends its request again.
const resendAfter = 2 * time.Second

// Run sends that many requests altogether to a server. Any answer but code (0x44 is 2.04; 0x02 is what an echo answers) is an
// error.
func (l CoAPLoad) Run(to string, requests int, code byte) (CoAPResult, error) {
	var (
		mu    sync.Mutex
		total CoAPResult
		times []time.Duration
		errs  []error
		all   sync.WaitGroup
	)
	devices := make([]*coapDevice, 0, l.Clients)
	for i := range l.Clients {
		d, err := l.device(to, i)
		if err != nil {
			return total, errors.Join(err, closeDevices(devices))
		}
		devices = append(devices, d)
	}
	began := time.Now()
	for i, d := range devices {
		n := requests / l.Clients
		if i < requests%l.Clients {
			n++
		}
		all.Go(func() {
			took, again, err := d.run(n, code)
			mu.Lock()
			defer mu.Unlock()
			times, total.Again, total.Answered = append(times, took...), total.Again+again, total.Answered+len(took)
			errs = append(errs, err)
		})
	}
	all.Wait()
	total.Elapsed = time.Since(began)
	if slices.Sort(times); len(times) > 0 {
		total.Median, total.P99 = times[len(times)/2], times[len(times)*99/100]
	}
	return total, errors.Join(append(errs, closeDevices(devices))...)
}

// coapDevice is one of the clients.
type coapDevice struct {
	conn    *net.UDPConn
	request []byte
}

func closeDevices(list []*coapDevice) error {
	var errs []error
	for _, d := range list {
		errs = append(errs, d.conn.Close())
	}
	return errors.Join(errs...)
}

// device makes one with a request of its own: version 1, CON, a token of 4 bytes, POST, Uri-Path ps/TOPIC.
func (l CoAPLoad) device(to string, n int) (*coapDevice, error) {
	addr, err := net.ResolveUDPAddr("udp", to)
	if err != nil {
		return nil, err
	}
	conn, err := net.DialUDP("udp", nil, addr)
	if err != nil {
		return nil, err
	}
	b := binary.BigEndian.AppendUint32([]byte{0x44, 0x02, 0, 0}, uint32(n))
	delta := byte(11) // Uri-Path
	for _, level := range bytes.Split([]byte("ps/"+l.Topic), []byte("/")) {
		b = append(b, delta<<4|byte(len(level)))
		b = append(b, level...)
		delta = 0
	}
	b = append(b, 0xff)
	b = append(b, bytes.Repeat([]byte("x"), l.Payload)...)
	return &coapDevice{conn, b}, nil
}

func (d *coapDevice) run(n int, code byte) (took []time.Duration, again int, err error) {
	in := make([]byte, 2048)
	took = make([]time.Duration, 0, n)
	first := rand.Uint32() // of the message IDs: the port may be that of a device before, whose requests are remembered
	for i := range n {
		binary.BigEndian.PutUint16(d.request[2:], uint16(first+uint32(i)))
		began := time.Now()
		for answered := false; !answered; {
			if _, err := d.conn.Write(d.request); err != nil {
				return took, again, err
			}
			switch answered, err = d.await(in, code); {
			case errors.Is(err, os.ErrDeadlineExceeded):
				again++
				if time.Since(began) > time.Minute {
					return took, again, fmt.Errorf("request %d: no answer within a minute", i)
				}
			case err != nil:
				return took, again, err
			}
		}
		took = append(took, time.Since(began))
	}
	return took, again, nil
}

// await reads until the answer comes: on the acknowledgement, or by itself, which is acknowledged then.
func (d *coapDevice) await(in []byte, code byte) (bool, error) {
	if err := d.conn.SetReadDeadline(time.Now().Add(resendAfter)); err != nil {
		return false, err
	}
	for {
		n, err := d.conn.Read(in)
		if err != nil {
			return false, err
		}
		b := in[:n]
		if n < 8 || !bytes.Equal(b[4:8], d.request[4:8]) {
			continue // an empty acknowledgement: the answer is to come
		}
		if b[1] != code {
			return false, fmt.Errorf("answered %d.%02d", b[1]>>5, b[1]&31)
		}
		own := bytes.Equal(b[2:4], d.request[2:4])
		if !own && b[0]>>4&3 == 0 {
			if _, err := d.conn.Write([]byte{0x60, 0, b[2], b[3]}); err != nil {
				return false, err
			}
			return true, nil
		}
		if own {
			return true, nil
		}
		// The answer to an earlier request, which was sent twice.
	}
}

// UDPEcho sends every datagram back to where it came from, one at a time: what a server in Go can do at most with one
// goroutine and one socket.
type UDPEcho struct {
	conn *net.UDPConn
	done chan struct{}
}

// NewUDPEcho starts one on a free port of the loopback.
func NewUDPEcho() (*UDPEcho, error) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	_ = conn.SetReadBuffer(4 << 20)
	e := &UDPEcho{conn, make(chan struct{})}
	go e.run() // ends when conn is closed
	return e, nil
}

func (e *UDPEcho) run() {
	defer close(e.done)
	b := make([]byte, 65535)
	for {
		n, from, err := e.conn.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		_, _ = e.conn.WriteToUDPAddrPort(b[:n], from)
	}
}

// Addr is where it listens.
func (e *UDPEcho) Addr() string { return e.conn.LocalAddr().String() }

// Close ends it.
func (e *UDPEcho) Close() {
	_ = e.conn.Close()
	<-e.done
}
