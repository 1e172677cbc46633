package config

import "reflect"

// Changes says what differs between two configurations. Nil lists mean nothing.
type Changes struct {
	// Reload and Restart are key paths in the order of the documentation: those
	// that a reload applies, and those that only a restart does.
	Reload, Restart []string
	// Added, Removed and Changed are names of tunnels; the first and the last
	// in the order of the new configuration, Removed in that of the old one. A
	// reload applies them.
	Added, Removed, Changed []string
}

// Empty reports whether the two configurations mean the same.
func (c Changes) Empty() bool {
	return len(c.Reload)+len(c.Restart)+len(c.Added)+len(c.Removed)+len(c.Changed) == 0
}

// DiffServer compares two configurations of the server. It reads them only.
func DiffServer(before, after *Server) Changes {
	return diffKeys(serverKeys(), before.values(), after.values())
}

// DiffClient compares two configurations of the client. It reads them only. A
// token file with new content shows as a change of "token".
func DiffClient(before, after *Client) Changes {
	c := diffKeys(clientKeys(), before.values(), after.values())
	earlier := make(map[string]Tunnel, len(before.Tunnels))
	for _, t := range before.Tunnels {
		earlier[t.Name] = t
	}
	kept := make(map[string]bool, len(after.Tunnels))
	for _, t := range after.Tunnels {
		kept[t.Name] = true
		old, known := earlier[t.Name]
		switch {
		case !known:
			c.Added = append(c.Added, t.Name)
		case !reflect.DeepEqual(old, t):
			c.Changed = append(c.Changed, t.Name)
		}
	}
	for _, t := range before.Tunnels {
		if !kept[t.Name] {
			c.Removed = append(c.Removed, t.Name)
		}
	}
	return c
}

func diffKeys(keys []key, before, after map[string]any) Changes {
	var c Changes
	for _, k := range keys {
		switch {
		case reflect.DeepEqual(before[k.path], after[k.path]):
		case k.restart:
			c.Restart = append(c.Restart, k.path)
		default:
			c.Reload = append(c.Reload, k.path)
		}
	}
	return c
}
