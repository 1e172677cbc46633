package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/logging"
	"github.com/cproxy/cproxy/core/wire"
)

const (
	// portsVersion is the version of the file's format.
	portsVersion = 1
	// saveEvery is the least time between two writes of the file.
	saveEvery = time.Second
	// saveAgain is when a write that failed is tried again.
	saveAgain = time.Minute
	// saveOpen is how often the file is written while ports are in use and
	// nothing changes: their time of last use goes on.
	saveOpen = 10 * time.Minute
	// saveWarning is how often one is told that writing fails.
	saveWarning = 10 * time.Minute
	// damaged ends the name under which a file is kept that cannot be read.
	damaged = ".damaged"
)

// savedPort is an entry of the file.
type savedPort struct {
	Subject string    `json:"subject"`
	Client  string    `json:"client"`
	Tunnel  string    `json:"tunnel"`
	Port    uint16    `json:"port"`
	Used    time.Time `json:"used"` // last, by the wall clock
}

func (p savedPort) owner() portOwner {
	return portOwner{subject: p.Subject, client: p.Client, tunnel: p.Tunnel}
}

func (p savedPort) check() error {
	if p.Port == 0 {
		return errors.New("its port is 0 or missing")
	}
	if !rememberable(p.Subject) {
		return errors.New("its subject is too long or has control characters")
	}
	return errors.Join(wire.ValidateName(p.Client), wire.ValidateName(p.Tunnel))
}

// portList is the memory of ports at one moment.
type portList struct {
	ports []savedPort
	open  bool // some are in use
}

// encodePorts writes one entry a line, in the order of their owners.
func encodePorts(ports []savedPort) ([]byte, error) {
	ports = slices.Clone(ports)
	slices.SortFunc(ports, func(a, b savedPort) int {
		if c := strings.Compare(a.Subject, b.Subject); c != 0 {
			return c
		}
		if c := strings.Compare(a.Client, b.Client); c != 0 {
			return c
		}
		return strings.Compare(a.Tunnel, b.Tunnel)
	})
	var b bytes.Buffer
	fmt.Fprintf(&b, "{\"version\": %d, \"ports\": [\n", portsVersion)
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	for i, p := range ports {
		if i > 0 {
			b.WriteByte(',')
		}
		p.Used = p.Used.UTC()
		if err := e.Encode(p); err != nil {
			return nil, fmt.Errorf("encode port %d of client %s: %w", p.Port, p.Client, err)
		}
	}
	b.WriteString("]}\n")
	return b.Bytes(), nil
}

// decodePorts reads what encodePorts has written. Fields that it does not know
// are skipped.
func decodePorts(data []byte) ([]savedPort, error) {
	var document struct {
		Version int         `json:"version"`
		Ports   []savedPort `json:"ports"`
	}
	if err := json.Unmarshal(data, &document); err != nil {
		return nil, fmt.Errorf("decode ports: %w", err)
	}
	if document.Version != portsVersion {
		return nil, fmt.Errorf("decode ports: the format has version %d, this server knows %d", document.Version, portsVersion)
	}
	seen := make(map[portOwner]bool, len(document.Ports))
	for i, p := range document.Ports {
		if err := p.check(); err != nil {
			return nil, fmt.Errorf("decode ports: entry %d: %w", i+1, err)
		}
		if seen[p.owner()] {
			return nil, fmt.Errorf("decode ports: entry %d: another one is for the same tunnel", i+1)
		}
		seen[p.owner()] = true
	}
	return document.Ports, nil
}

// portFile keeps the memory of ports on disk. Nothing that happens to it stops
// the server.
type portFile struct {
	path     string
	log      *slog.Logger
	warnings *logging.RateLimited
	failed   bool // the last write
	keep     bool // a file that cannot be read, nor moved aside, is in the place
}

func newPortFile(path string, log *slog.Logger) *portFile {
	return &portFile{path: path, log: log, warnings: logging.NewRateLimited(log, saveWarning, 1)}
}

// load reads the file. One that cannot be read is moved aside, or if that fails
// left alone: then nothing is saved.
func (f *portFile) load() []savedPort {
	data, err := identity.ReadPrivate(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var ports []savedPort
	if err == nil {
		ports, err = decodePorts(data)
	}
	if err == nil {
		return ports
	}
	kept := f.path + damaged
	if moving := os.Rename(f.path, kept); moving != nil {
		f.keep = true
		f.log.Error("the file of remembered public ports can neither be read nor be moved aside, so it is left as it is and nothing is saved: "+
			"tunnels without a fixed remote_port may get other ports now and after the next restart; "+
			"stop the server, move the file away or make it readable, and start again",
			"file", f.path, "kept_as", f.path, "error", errors.Join(err, moving))
		return nil
	}
	f.log.Error("the file of remembered public ports cannot be read, so tunnels without a fixed remote_port may get other ports; "+
		"to have the former ones back stop the server, put a good file in its place and start again, else remove the damaged one",
		"file", f.path, "kept_as", kept, "error", err)
	return nil
}

// run saves the memory after changes, until ctx ends. take gives the memory of
// the moment, or false when ctx has ended.
func (f *portFile) run(ctx context.Context, changed <-chan struct{}, take func() (portList, bool)) {
	again := time.NewTimer(saveOpen)
	again.Stop()
	defer again.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
		select {
		case <-changed:
		case <-again.C:
		case <-ctx.Done():
			return
		}
		l, ok := take()
		if !ok {
			return
		}
		f.save(l.ports)
		pause.Reset(saveEvery)
		again.Stop()
		switch {
		case f.failed:
			again.Reset(saveAgain)
		case l.open:
			again.Reset(saveOpen)
		}
	}
}

// finish saves what was not saved before, after run and the hub have ended.
func (f *portFile) finish(m *portMemory) {
	if m.unsaved || m.open > 0 || f.failed {
		f.save(m.list(time.Now(), 0).ports)
	}
	f.warnings.Flush()
}

func (f *portFile) save(ports []savedPort) {
	if f.keep {
		return
	}
	data, err := encodePorts(ports)
	if err == nil {
		err = identity.WritePrivate(f.path, data)
	}
	f.failed = err != nil
	if err != nil {
		f.warnings.Log(slog.LevelWarn, "save", "the public ports of tunnels cannot be saved, so a restart of the server may change them; "+
			"make room on the disk of state_dir, and let the server's user write there", "file", f.path, "error", err)
	}
}

// listPorts asks the hub for its memory of ports.
type listPorts struct {
	reply chan<- portList
}

func (m listPorts) handle(h *hub) { m.reply <- h.maps.ports.list(time.Now(), saveOpen) }

// keepPorts loads the memory of ports and saves it from then on. The function
// that it gives ends that, once ctx is done and the hub has ended.
func (s *Server) keepPorts(ctx context.Context) (finish func()) {
	if s.options.PortsFile == "" {
		return func() {}
	}
	f := newPortFile(s.options.PortsFile, s.options.Log)
	s.hub.maps.ports.restore(f.load(), time.Now())
	var saving sync.WaitGroup
	changed := s.hub.maps.ports.changed
	saving.Go(func() {
		f.run(ctx, changed, func() (portList, bool) {
			reply := make(chan portList, 1)
			if !s.hub.tell(ctx, listPorts{reply}) {
				return portList{}, false
			}
			return <-reply, true
		})
	})
	return func() {
		saving.Wait()
		f.finish(s.hub.maps.ports)
	}
}
