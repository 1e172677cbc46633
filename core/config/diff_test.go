package config

import (
	"reflect"
	"slices"
	"testing"
	"time"
)

func TestDiffServer(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Server)
		want   Changes
	}{
		{"nothing", func(*Server) {}, Changes{}},
		{"equal lists", func(s *Server) { s.Limits.Ports = slices.Clone(s.Limits.Ports) }, Changes{}},
		{"level", func(s *Server) { s.Log.Level++ }, Changes{Reload: []string{"log.level"}}},
		{"limits", func(s *Server) { s.Limits = Limits{} }, Changes{Reload: []string{"limits.ports", "limits.max_tunnels_per_client"}}},
		{"timeouts", func(s *Server) { s.Timeouts.Idle, s.Timeouts.Heartbeat = time.Hour, time.Hour }, Changes{Reload: []string{"timeouts.idle", "timeouts.heartbeat"}}},
		{"listen", func(s *Server) { s.CtlListen = ":1" }, Changes{Restart: []string{"ctl_listen"}}},
		{"state", func(s *Server) { s.StateDir = "/x"; s.TokensFile = "/x/t"; s.Loops = 3 }, Changes{Restart: []string{"state_dir", "tokens_file", "loops"}}},
		{"both", func(s *Server) { s.Grace = 0; s.Log.Format = LogJSON }, Changes{Reload: []string{"grace"}, Restart: []string{"log.format"}}},
		{"bind", func(s *Server) { s.PublicBind = addrs("::1") }, Changes{Reload: []string{"public_bind"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			after := defaultServer()
			tt.change(after)
			got := DiffServer(defaultServer(), after)
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if got.Empty() != reflect.DeepEqual(tt.want, Changes{}) {
				t.Errorf("Empty is %v", got.Empty())
			}
		})
	}
}

func TestDiffClient(t *testing.T) {
	tunnel := func(name string, port uint16) Tunnel {
		return Tunnel{Name: name, RemotePorts: PortRange{port, port}, Bind: addrs("::1")}
	}
	before := &Client{Servers: []string{"a:1"}, Token: NewSecret("old"), Tunnels: []Tunnel{tunnel("a", 1), tunnel("b", 2), tunnel("c", 3)}}
	tests := []struct {
		name  string
		after Client
		want  Changes
	}{
		{"nothing", *before, Changes{}},
		{"order of tunnels", Client{Servers: []string{"a:1"}, Token: NewSecret("old"), Tunnels: []Tunnel{tunnel("c", 3), tunnel("b", 2), tunnel("a", 1)}}, Changes{}},
		{
			"tunnels",
			Client{Servers: []string{"a:1"}, Token: NewSecret("old"), Tunnels: []Tunnel{tunnel("d", 4), tunnel("b", 9), tunnel("c", 3)}},
			Changes{Added: []string{"d"}, Changed: []string{"b"}, Removed: []string{"a"}},
		},
		{
			"keys",
			Client{Servers: []string{"b:1"}, Pins: []string{"p"}, CAFile: "c", Token: NewSecret("new"), Name: "n", Tunnels: before.Tunnels},
			Changes{Reload: []string{"server", "pin", "ca_file", "token"}, Restart: []string{"name"}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := DiffClient(before, &tt.after); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}
