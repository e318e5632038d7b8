package buffer

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// BenchmarkDevice counts what reaches the device for a durable commit: bytes and flushes, on an ext4 of its own behind a loop device, where
// the counts are exact and do not depend on the speed of any disk. It compares the log, in segments that were used before, with appending
// and fdatasync, and with writing into a zero-filled file. It needs root or sudo.
func BenchmarkDevice(b *testing.B) {
	for _, batch := range []int{1, 64, 512} {
		d := mountDevice(b, 512<<20)
		raw := make([]byte, batch*benchRecord)
		grown, zeroed := newRawFile(b, d.mount, "grown", 0), newRawFile(b, d.mount, "zeroed", 32<<20)
		l := openLog(b, filepath.Join(d.mount, "log"), Options{SegmentBytes: 8 << 20})
		q := queueOf(b, l, "q", QueueOptions{Bound: l.NewBound(256<<20, Refuse)})
		recs := make([]Record, 512)
		for i := range recs {
			recs[i] = Record{Queue: q, Data: payload(i, benchRecord)}
		}
		commit := func() error {
			seqs := make([]Seq, len(recs))
			p, err := l.Append(recs...)
			if err != nil {
				return err
			}
			if err := l.Wait(b.Context(), p); err != nil {
				return err
			}
			for i := range recs {
				seqs[i] = recs[i].Seq
			}
			q.Ack(seqs...)
			return nil
		}
		for range 400 { // 52 MB: from then on all segments are used ones
			if err := commit(); err != nil {
				b.Fatal(err)
			}
		}
		recs = recs[:batch]
		for _, store := range []struct {
			name   string
			commit func() error
		}{
			{"log", commit},
			{"append", func() error { return grown.commit(raw) }},
			{"zero-filled", func() error { return zeroed.commit(raw) }},
		} {
			b.Run(fmt.Sprintf("batch=%d/%s", batch, store.name), func(b *testing.B) {
				n := 0
				before := d.counts(b)
				for b.Loop() {
					for range 4000 / min(batch, 40) {
						if err := store.commit(); err != nil {
							b.Fatal(err)
						}
						n++
					}
				}
				after := d.counts(b)
				bytes := float64(after.bytes-before.bytes) / float64(n)
				b.ReportMetric(bytes/1000, "KB/commit")
				b.ReportMetric(bytes/float64(len(raw)), "device/payload")
				b.ReportMetric(float64(after.flushes-before.flushes)/float64(n), "flushes/commit")
				b.ReportMetric(0, "ns/op")
			})
		}
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
		_ = grown.f.Close()
		_ = zeroed.f.Close()
	}
}

// device is a mounted file system and where the kernel counts what reaches the device under it.
type device struct{ mount, stat string }

// mountDevice makes an ext4 of size bytes in a file, behind a loop device of its own. Where there are none it gives a folder, and nothing is
// counted.
func mountDevice(b *testing.B, size int64) device {
	b.Helper()
	dir := b.TempDir()
	image, mount := filepath.Join(dir, "image"), filepath.Join(dir, "mount")
	if err := os.Mkdir(mount, 0o700); err != nil {
		b.Fatal(err)
	}
	command := func(name string, args ...string) string {
		b.Helper()
		out, err := asRoot(name, args...).CombinedOutput()
		if err != nil {
			b.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	command("truncate", "-s", fmt.Sprint(size), image)
	command("mkfs.ext4", "-q", "-F", "-E",
		fmt.Sprintf("lazy_itable_init=0,lazy_journal_init=0,root_owner=%d:%d", os.Getuid(), os.Getgid()), image)
	// umount lets go of the loop device, too
	if out, err := asRoot("mount", "-o", "loop,noatime", image, mount).CombinedOutput(); err != nil {
		b.Logf("no device to count at: mount: %v: %s", err, out)
		return device{mount: dir}
	}
	b.Cleanup(func() {
		if out, err := asRoot("umount", mount).CombinedOutput(); err != nil {
			b.Errorf("umount: %v\n%s", err, out)
		}
	})
	name, _, _ := strings.Cut(command("losetup", "-j", image), ":")
	return device{mount, filepath.Join("/sys/block", filepath.Base(name), "stat")}
}

// asRoot is a command as root: by itself, or by sudo.
func asRoot(name string, args ...string) *exec.Cmd {
	path, err := exec.LookPath(name)
	if err != nil {
		path = "/usr/sbin/" + name
	}
	if os.Getuid() != 0 {
		return exec.Command("sudo", append([]string{"-n", path}, args...)...)
	}
	return exec.Command(path, args...)
}

type deviceCounts struct{ bytes, flushes int64 }

// counts reads the fields of /sys/block/loopN/stat: sectors written are the 7th, flush requests the 16th.
func (d device) counts(b *testing.B) deviceCounts {
	b.Helper()
	if d.stat == "" {
		return deviceCounts{}
	}
	text, err := os.ReadFile(d.stat)
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(text))
	if len(fields) < 16 {
		b.Fatalf("%s: %d fields, want 16", d.stat, len(fields))
	}
	sectors, err := strconv.ParseInt(fields[6], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	flushes, err := strconv.ParseInt(fields[15], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return deviceCounts{sectors * 512, flushes}
}
