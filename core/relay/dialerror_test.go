package relay

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// The client's side of a stream tells why its LocalServer was not reached, the
// server's side that it was not.
func TestDialErrorSaysWhy(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "left")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: left})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	closed := filepath.Join(dir, "closed")
	if err := os.Mkdir(closed, 0); err != nil {
		t.Fatal(err)
	}
	missing := Address{Unix: filepath.Join(dir, "none")}
	tests := map[string]struct {
		addresses []Address
		want      error
	}{
		"dead port":              {nobody(t).Addresses, syscall.ECONNREFUSED},
		"no socket":              {[]Address{missing}, syscall.ENOENT},
		"left over socket":       {[]Address{{Unix: left}}, syscall.ECONNREFUSED},
		"no address":             {nil, ErrNoAddress},
		"the last address":       {append(nobody(t).Addresses, missing), syscall.ENOENT},
		"the last one, asked on": {append([]Address{missing}, nobody(t).Addresses...), syscall.ECONNREFUSED},
		"nobody answers":         {[]Address{silentTCP(t)}, syscall.ETIMEDOUT},
	}
	if os.Geteuid() != 0 { // root may enter it
		tests["forbidden"] = struct {
			addresses []Address
			want      error
		}{[]Address{{Unix: filepath.Join(closed, "socket")}}, syscall.EACCES}
	}
	set := DefaultSettings()
	set.Connect = 50 * time.Millisecond
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			k := startLink(t, linkOptions{target: Target{Addresses: test.addresses}, settings: set})
			k.server.Submit(Configure{Settings: DefaultSettings()})
			k.open(1)
			wantRefused(t, k.public)
			here, there := await[StreamEnded](k.client.fixture), await[StreamEnded](k.server.fixture)
			if here.Reason != DialError || !errors.Is(here.Err, test.want) {
				t.Errorf("the client ended with %v, %v; want %v", here.Reason, here.Err, test.want)
			}
			if there.Reason != DialError || there.Err != nil {
				t.Errorf("the server ended with %v, %v", there.Reason, there.Err)
			}
		})
	}
}
