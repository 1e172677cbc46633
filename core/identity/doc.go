// Package identity answers who is who: the server's key and how clients verify
// it, and the secrets by which the server knows its clients.
//
// The server's identity is an ECDSA P-256 key with a self-signed certificate,
// made at first need in the state directory ([LoadOrCreateServer]). Clients trust
// it by the SHA-256 of its public key ([Pin]), by a CA file, or by the system's
// roots ([ClientTLS]). All connections are TLS 1.3 without resumption.
//
// A client's credential is a name and 256 random bits ([TokenSecret]); the
// server keeps only their SHA-256, in a tokens file ([LoadTokens], [AddToken],
// [RevokeToken]) that a [Provider] re-reads on every change. A [Join] string
// carries everything a client needs to connect.
//
// Secrets print as ***, whatever the formatting verb; the methods named Reveal
// are the only way to their text. fmt cannot call methods on unexported fields:
// a struct that holds a secret in one must mask itself.
package identity
