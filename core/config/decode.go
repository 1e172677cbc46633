package config

import (
	"errors"
	"log/slog"
	"net/netip"
	"reflect"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/v2"

	"github.com/cproxy/cproxy/core/rate"
)

// decodeInto fills out, a pointer to a raw struct, from k. Nothing is converted
// silently: a number in quotes, a fraction for a whole number, a key in other
// letter case and a key without a field are all mistakes. Each mistake is given
// to report with its path, which holds indexes ("tunnel[1].bind[0]").
func decodeInto(k *koanf.Koanf, s schema, out any, report func(path, message string)) {
	err := k.UnmarshalWithConf("", out, koanf.UnmarshalConf{
		Tag: "koanf",
		DecoderConfig: &mapstructure.DecoderConfig{
			DecodeHook:           mapstructure.DecodeHookFuncType(convert),
			ErrorUnused:          true,
			WeaklyTypedInput:     false,
			IgnoreUntaggedFields: true,
			MatchName:            func(mapKey, field string) bool { return mapKey == field },
		},
	})
	reportDecode(err, s, report)
}

// reportDecode walks the tree of joined errors that mapstructure gives.
func reportDecode(err error, s schema, report func(path, message string)) {
	if err == nil {
		return
	}
	if at, ok := err.(*mapstructure.DecodeError); ok { //nolint:errorlint // each node is looked at by itself
		report(at.Name(), decodeMessage(at, s))
		return
	}
	switch wrapper := err.(type) { //nolint:errorlint // as above
	case interface{ Unwrap() []error }:
		for _, inner := range wrapper.Unwrap() {
			reportDecode(inner, s, report)
		}
	case interface{ Unwrap() error }:
		reportDecode(wrapper.Unwrap(), s, report)
	default:
		report("", err.Error())
	}
}

func decodeMessage(err *mapstructure.DecodeError, s schema) string {
	if bad, ok := errors.AsType[*valueError](err); ok {
		return bad.text
	}
	path := plain(err.Name())
	if k, leaf := s.byPath[path]; leaf {
		return "must be " + k.kind.want()
	}
	switch {
	case path == tunnelKey:
		return "must be tables; write [[tunnel]] above the keys of each tunnel"
	case s.tables[path]:
		return "must be a table; write [" + path + "] above its keys"
	default:
		return err.Error()
	}
}

// convert is the decode hook: it turns file values into the types of the raw
// structs.
func convert(_, to reflect.Type, v any) (any, error) {
	switch to {
	case reflect.TypeFor[time.Duration]():
		return parseDuration(v)
	case reflect.TypeFor[rate.Bytes]():
		return parseRate(v)
	case reflect.TypeFor[PortRange]():
		return parsePortRange(v)
	case reflect.TypeFor[[]PortRange](), reflect.TypeFor[[]netip.Addr](), reflect.TypeFor[[]string]():
		return oneOrMany(v), nil
	case reflect.TypeFor[netip.Addr]():
		return parseAddr(v)
	case reflect.TypeFor[Local]():
		return parseLocal(v)
	case reflect.TypeFor[slog.Level]():
		return parseLevel(v)
	case reflect.TypeFor[LogFormat]():
		return parseFormat(v)
	case reflect.TypeFor[ProxyProtocol]():
		return parseProxyProtocol(v)
	case reflect.TypeFor[Secret]():
		return parseSecret(v)
	}
	if _, isFloat := v.(float64); isFloat && to.Kind() == reflect.Int {
		return nil, badValue(kindInt.want(), nil)
	}
	if text, isText := v.(string); isText && to.Kind() == reflect.Int {
		return nil, badValue(kindInt.want(), text)
	}
	return v, nil
}

// oneOrMany lets a single value stand for a list of one.
func oneOrMany(v any) any {
	switch v.(type) {
	case string, int64:
		return []any{v}
	default:
		return v
	}
}
