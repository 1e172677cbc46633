package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
)

// Sizes of the fixed-length fields, in bytes.
const (
	InstanceSize   = 16 // Hello.instance
	SecretSize     = 32 // Credential.secret
	SessionKeySize = 32 // Welcome.session_key
	ProofSize      = 32 // Hello.proof
)

const (
	// ResumeExporterLabel is the label under which both ends export keying
	// material from the new control connection (RFC 8446, section 7.5, with
	// no context) for [ResumeProof]. It ties a proof to one connection.
	ResumeExporterLabel = "EXPERIMENTAL-cproxy-resume"

	// ResumeExporterSize is the length of that keying material in bytes.
	ResumeExporterSize = 32

	resumeLabel = "cproxy resume v1"
)

// ResumeProof returns HMAC-SHA256 under the session key over the label
// "cproxy resume v1", the epoch of the Hello as eight big-endian bytes, and the
// keying material exported from the new control connection. Whoever holds the
// session key of a Control proves it this way without sending the key.
func ResumeProof(sessionKey []byte, epoch uint64, exporter []byte) []byte {
	mac := hmac.New(sha256.New, sessionKey)
	mac.Write([]byte(resumeLabel))
	mac.Write(binary.BigEndian.AppendUint64(nil, epoch))
	mac.Write(exporter)
	return mac.Sum(nil)
}

// CheckResumeProof reports, in constant time, whether proof is the
// [ResumeProof] of the other arguments. A session key of another length than
// [SessionKeySize], such as a missing one, proves nothing.
func CheckResumeProof(proof, sessionKey []byte, epoch uint64, exporter []byte) bool {
	return len(sessionKey) == SessionKeySize &&
		hmac.Equal(proof, ResumeProof(sessionKey, epoch, exporter))
}
