package server

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/logging/logtest"
)

const goodPorts = `{"version": 1, "ports": [
{"subject":"alice","client":"host","tunnel":"ssh","port":5001,"used":"2026-03-01T12:00:00Z"}
,{"subject":"alice","client":"host","tunnel":"web","port":5000,"used":"2026-03-01T12:00:00.5Z"}
]}
`

func TestPortsFormat(t *testing.T) {
	ports, err := decodePorts([]byte(goodPorts))
	want := []savedPort{
		{"alice", "host", "ssh", 5001, noon},
		{"alice", "host", "web", 5000, noon.Add(time.Second / 2)},
	}
	if err != nil || !reflect.DeepEqual(ports, want) {
		t.Fatalf("decoded %v, %v", ports, err)
	}
	cet := time.FixedZone("CET", 3600)
	data, err := encodePorts([]savedPort{{"alice", "host", "web", 5000, want[1].Used.In(cet)}, want[0]})
	if err != nil || string(data) != goodPorts {
		t.Errorf("encoded %s, %v", data, err)
	}
	if data, err := encodePorts(nil); err != nil {
		t.Error(err)
	} else if ports, err := decodePorts(data); err != nil || len(ports) > 0 {
		t.Errorf("nothing is encoded as %s, %v", data, err)
	}
	if _, err := encodePorts([]savedPort{{"alice", "host", "web", 5000, time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC)}}); err == nil {
		t.Error("a time that cannot be written is encoded")
	}
}

// spoiltPorts are files that cannot be read, and what is wrong with each.
func spoiltPorts() map[string]string {
	return map[string]string{
		"":                                    "unexpected end",
		goodPorts[:len(goodPorts)-4]:          "unexpected end",
		goodPorts + "x":                       "invalid character",
		strings.Repeat("\x00", 4096):          "invalid character",
		`{"ports":[]}`:                        "version 0",
		`{"version":2,"ports":[]}`:            "version 2",
		`[]`:                                  "cannot unmarshal",
		`{"version":1,"ports":[{"port":80}]}`: "name of 0 bytes",
		strings.Replace(goodPorts, "5001", "0", 1):                                    "entry 1: its port",
		strings.Replace(goodPorts, "5001", "65536", 1):                                "cannot unmarshal",
		strings.Replace(goodPorts, "5001", "-1", 1):                                   "cannot unmarshal",
		strings.Replace(goodPorts, "ssh", "s s", 1):                                   `name "s s"`,
		strings.Replace(goodPorts, "host", "", 1):                                     "name of 0 bytes",
		strings.Replace(goodPorts, "alice", strings.Repeat("x", maxSubject+1), 1):     "subject is too long",
		strings.Replace(goodPorts, "ssh", "web", 1):                                   "entry 2: another one",
		strings.Replace(goodPorts, "2026-03-01T12:00:00Z", "yesterday", 1):            "parsing time",
		strings.Replace(goodPorts, `"alice","client":"host","tunnel":"ssh"`, `{}`, 1): "cannot unmarshal",
	}
}

func TestSpoiltPorts(t *testing.T) {
	for text, says := range spoiltPorts() {
		if ports, err := decodePorts([]byte(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q is read as %v, %v; want an error with %q", text, ports, err, says)
		}
	}
}

// The names of a full memory, however long, fit into a file that is read again.
func TestFullMemoryIsRead(t *testing.T) {
	m := newPortMemory()
	for i := range maxRemembered {
		name := fmt.Sprintf("%064d", i)
		m.opened(portOwner{strings.Repeat(`"`, maxSubject-1) + fmt.Sprint(i%2), name, name}, uint16(1+i))
	}
	data, err := encodePorts(m.list(noon, 0).ports)
	if err != nil || len(data) > 16<<20 {
		t.Fatalf("%d bytes, %v", len(data), err)
	}
	ports, err := decodePorts(data)
	if err != nil || len(ports) != maxRemembered {
		t.Fatalf("%d ports, %v", len(ports), err)
	}
	again := newPortMemory()
	again.restore(ports, noon)
	again.sound(t)
	if len(again.owners) != maxRemembered {
		t.Errorf("%d ports were restored", len(again.owners))
	}
}

func FuzzDecodePorts(f *testing.F) {
	f.Add([]byte(goodPorts))
	for text := range spoiltPorts() {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		ports, err := decodePorts(data)
		if err != nil {
			return
		}
		encoded, err := encodePorts(ports)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		again, err := decodePorts(encoded)
		if err != nil || len(again) != len(ports) {
			t.Fatalf("what was written cannot be read: %v\n%s", err, encoded)
		}
		m := newPortMemory()
		m.restore(again, noon)
		m.sound(t)
		for _, p := range ports {
			if got := m.port(p.owner(), noon); got != 0 && got != p.Port {
				t.Fatalf("%v is restored with port %d", p, got)
			}
		}
	})
}

func TestPortsFileIsLoaded(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(path string) error
		ports   int
		says    string // in the log; empty: nothing is logged
	}{
		{"missing", func(string) error { return nil }, 0, ""},
		{"good", func(path string) error { return os.WriteFile(path, []byte(goodPorts), 0o600) }, 2, ""},
		{"cut off", func(path string) error { return os.WriteFile(path, []byte(goodPorts[:100]), 0o600) }, 0, "unexpected end"},
		{"a folder", func(path string) error { return os.Mkdir(path, 0o700) }, 0, "not a regular file"},
		{"too large", func(path string) error { return os.WriteFile(path, make([]byte, 17<<20), 0o600) }, 0, "larger than 16 MiB"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ports.json")
			if err := test.prepare(path); err != nil {
				t.Fatal(err)
			}
			log := new(logtest.Output)
			f := newPortFile(path, log.Logger())
			if got := f.load(); len(got) != test.ports {
				t.Errorf("loaded %v", got)
			}
			_, err := os.Lstat(path + damaged)
			if test.says == "" {
				if log.String() != "" || err == nil {
					t.Errorf("log %s; kept aside: %v", log, err)
				}
				return
			}
			for _, s := range []string{"level=ERROR", test.says, path, path + damaged, "stop the server"} {
				if !strings.Contains(log.String(), s) {
					t.Errorf("the log does not say %q: %s", s, log)
				}
			}
			if err != nil {
				t.Errorf("the file is not kept aside: %v", err)
			}
			f.save([]savedPort{{"alice", "host", "web", 5000, noon}})
			if got := newPortFile(path, log.Logger()).load(); len(got) != 1 {
				t.Errorf("then %v was loaded", got)
			}
		})
	}
	t.Run("cannot be kept aside", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "ports.json")
		if err := os.WriteFile(path, []byte("spoilt"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{path + damaged, filepath.Join(path+damaged, "full")} {
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		log := new(logtest.Output)
		f := newPortFile(path, log.Logger())
		f.load()
		f.save([]savedPort{{"alice", "host", "web", 5000, noon}})
		if data, err := os.ReadFile(path); err != nil || string(data) != "spoilt" || f.failed {
			t.Errorf("then the file has %q, %v", data, err)
		}
		if !strings.Contains(log.String(), "kept_as="+path+" ") || !strings.Contains(log.String(), "rename") {
			t.Errorf("log %s", log)
		}
	})
}

// writtenPorts is the memory's file with a hub that answers at once.
type writtenPorts struct {
	t    *testing.T
	file *portFile
	log  *logtest.Output
	end  func()

	mu     sync.Mutex // is what the hub's goroutine is elsewhere
	memory *portMemory
	takes  int // lists taken
}

func (w *writtenPorts) do(change func(m *portMemory)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(w.memory)
}

func (w *writtenPorts) open(tunnel string, port uint16) {
	w.do(func(m *portMemory) { m.opened(ownerNamed(tunnel), port) })
}

// taken is how often a list was taken since it was last asked.
func (w *writtenPorts) taken() (n int) {
	synctest.Wait()
	w.do(func(*portMemory) { n, w.takes = w.takes, 0 })
	return n
}

func keepWritten(t *testing.T, path string) *writtenPorts {
	t.Helper()
	w := &writtenPorts{t: t, log: new(logtest.Output), memory: newPortMemory()}
	w.file = newPortFile(path, w.log.Logger())
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		w.file.run(ctx, w.memory.changed, func() (portList, bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.takes++
			return w.memory.list(time.Now(), saveOpen), true
		})
	})
	w.end = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		w.file.finish(w.memory)
	})
	t.Cleanup(w.end)
	return w
}

// saved gives the ports of the file.
func (w *writtenPorts) saved() int {
	w.t.Helper()
	synctest.Wait()
	data, err := identity.ReadPrivate(w.file.path)
	if err != nil {
		w.t.Fatal(err)
	}
	ports, err := decodePorts(data)
	if err != nil {
		w.t.Fatal(err)
	}
	return len(ports)
}

func TestPortsAreSaved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ports.json")
	synctest.Test(t, func(t *testing.T) {
		w := keepWritten(t, path)
		time.Sleep(time.Hour)
		if n := w.taken(); n > 0 {
			t.Errorf("nothing was saved %d times", n)
		}
		w.open("web", 5000)
		if n := w.saved(); n != 1 {
			t.Fatalf("%d ports are saved at once", n)
		}
		for i := range 100 { // ten a second
			time.Sleep(100 * time.Millisecond)
			w.open(fmt.Sprint(i), uint16(6000+i))
		}
		time.Sleep(saveEvery)
		if n, times := w.saved(), w.taken(); n != 101 || times > 12 {
			t.Errorf("%d ports are saved, %d times", n, times)
		}
		time.Sleep(time.Hour)
		if n := w.taken(); n != int(time.Hour/saveOpen) {
			t.Errorf("in an hour ports in use were saved %d times", n)
		}
		closeAll := func(m *portMemory) {
			for o := range m.owners {
				m.closed(o, time.Now())
			}
		}
		w.do(closeAll)
		time.Sleep(2 * saveEvery)
		w.taken()
		time.Sleep(time.Hour)
		if n := w.taken(); n > 0 {
			t.Errorf("ports that nobody uses were saved %d times", n)
		}

		w.open("late", 5001)
		synctest.Wait()
		w.open("later", 5002) // within the second
		w.do(closeAll)
		w.end()
		if n := w.saved(); n != 103 {
			t.Errorf("%d ports are saved at the end", n)
		}
	})
}

func TestPortsInUseAreDatedByTheirEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ports.json")
	synctest.Test(t, func(t *testing.T) {
		w := keepWritten(t, path)
		w.open("web", 5000)
		synctest.Wait()
		used := func() time.Time { return newPortFile(path, w.log.Logger()).load()[0].Used }
		if got := time.Until(used()); got != saveOpen {
			t.Errorf("while it is in use its time is %v from now, want the next save", got)
		}
		time.Sleep(saveOpen / 2)
		w.end() // although nothing has changed
		if got := used(); !got.Equal(time.Now()) {
			t.Errorf("at the end its time is %v, want now", got)
		}
	})
}

func TestUnusedPortsAreNotSavedAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ports.json")
	synctest.Test(t, func(t *testing.T) {
		w := keepWritten(t, path)
		w.memory.restore([]savedPort{{"alice", "host", "web", 5000, time.Now()}}, time.Now())
		w.end() // such as that of a server which found its ports taken
		if _, err := os.Lstat(path); err == nil {
			t.Error("a file was written")
		}
	})
}

// A disk that is full, or a folder that is gone, is told of now and then; the
// ports are saved once that is over.
func TestPortsThatCannotBeSaved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) {
		w := keepWritten(t, filepath.Join(dir, "ports.json"))
		for i := range 300 {
			w.open(fmt.Sprint(i), uint16(5000+i))
			time.Sleep(saveEvery)
		}
		synctest.Wait()
		if n := strings.Count(w.log.String(), "cannot be saved"); n != 1 {
			t.Errorf("it was told %d times:\n%s", n, w.log)
		}
		if !strings.Contains(w.log.String(), "level=WARN") || !strings.Contains(w.log.String(), "make room") || !strings.Contains(w.log.String(), dir) {
			t.Errorf("log %s", w.log)
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		time.Sleep(saveAgain) // without a change
		if n := w.saved(); n != 300 {
			t.Errorf("then %d ports are saved", n)
		}
	})
}

// A write that fails leaves the file as it was, and is made up for at the end.
func TestFailedSaveLeavesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ports.json")
	log := new(logtest.Output)
	f := newPortFile(path, log.Logger())
	m := newPortMemory()
	m.opened(ownerNamed("web"), 5000)
	f.save(m.list(time.Now(), 0).ports)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// There is no file of such a name.
	f.path = filepath.Join(filepath.Dir(path), strings.Repeat("x", 250))
	m.opened(ownerNamed("ssh"), 5001)
	f.save(m.list(time.Now(), 0).ports)
	if !f.failed {
		t.Error("the failure went unnoticed")
	}
	f.path = path
	after, err := os.ReadFile(path)
	if err != nil || string(after) != string(before) {
		t.Errorf("the file is now %s, %v", after, err)
	}
	m.unsaved = false
	m.closed(ownerNamed("web"), time.Now())
	m.closed(ownerNamed("ssh"), time.Now())
	m.list(time.Now(), 0)
	f.finish(m)
	if got := f.load(); len(got) != 2 {
		t.Errorf("%v is saved at the end", got)
	}
}
