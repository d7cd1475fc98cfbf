// SPDX-License-Identifier: Apache-2.0
// The text of every message: what checks throw and what a reader says of a file.
#pragma once

#include <initializer_list>
#include <locale>
#include <sstream>
#include <string>
#include <type_traits>

#include "../instruction_set.hpp"

namespace moe::inline MOE_INSTRUCTION_SET::detail {

/// A reference to a part of a message, without its type: hundreds of messages, each of other types,
/// are put together by one function.
class MessagePart {
 public:
  MessagePart(const char* text) : value_(text), print_(&print_text) {}
  template <class T>
  requires(!std::is_array_v<T>) MessagePart(const T& value)
      : value_(&value), print_(&print_value<T>) {}

  friend std::ostream& operator<<(std::ostream& stream, const MessagePart& part) {
    part.print_(stream, part.value_);
    return stream;
  }

 private:
  static void print_text(std::ostream& stream, const void* text) {
    stream << static_cast<const char*>(text);
  }
  template <class T>
  static void print_value(std::ostream& stream, const void* value) {
    stream << *static_cast<const T*>(value);
  }

  const void* value_;
  void (*print_)(std::ostream&, const void*);
};

inline std::string joined_parts(std::initializer_list<MessagePart> parts) {
  std::ostringstream text;
  text.imbue(std::locale::classic());
  for (const MessagePart& part : parts) {
    text << part;
  }
  return text.str();
}

/// The parts one after the other, as a stream prints them, but 1288 and 4.5 whatever the program's
/// locale makes of them ("1,288", "4,5").
template <class... Parts>
std::string joined(const Parts&... parts) {
  return joined_parts({MessagePart(parts)...});
}

}  // namespace moe::inline MOE_INSTRUCTION_SET::detail
